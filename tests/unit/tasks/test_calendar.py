"""Calendars: what of iCalendar is read, what is refused and how, and when a moment is within."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo

import pytest
from dateutil.rrule import rrulestr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.tasks.clock.calendar import read_calendar
from ctrl_exec.tasks.clock.recurrence import read_rule
from ctrl_exec.tasks.clock.zones import zone_named

BERLIN = zone_named("Europe/Berlin")
TOKYO = zone_named("Asia/Tokyo")


def ical(*events: str, newline: str = "\r\n") -> str:
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//example//EN"]
    for event in events:
        lines += ["BEGIN:VEVENT", "UID:1@example.net", *event.split("\n"), "END:VEVENT"]
    return newline.join([*lines, "END:VCALENDAR", ""])


def allows(text: str, moment: str, zone: tzinfo = BERLIN) -> bool:
    """Whether a calendar that leaves these events out has a start at the wall-clock time."""
    found = datetime.fromisoformat(moment)
    found = found if found.tzinfo else found.replace(tzinfo=zone)
    return read_calendar("EXCLUDE", (), text).allows(int(found.timestamp()), zone)


@pytest.mark.parametrize(
    ("event", "within", "without"),
    [
        ("DTSTART;VALUE=DATE:20261225\nDTEND;VALUE=DATE:20261227",
         ["2026-12-25T00:00", "2026-12-26T23:59:59"], ["2026-12-24T23:59:59", "2026-12-27T00:00"]),
        ("DTSTART;VALUE=DATE:20261225", ["2026-12-25T12:00"], ["2026-12-26T00:00"]),
        ("DTSTART:20260110T100000Z\nDTEND:20260110T110000Z", ["2026-01-10T11:00", "2026-01-10T11:59:59"],
         ["2026-01-10T10:59:59", "2026-01-10T12:00"]),
        ("DTSTART;TZID=Asia/Tokyo:20260110T100000\nDTEND;TZID=Asia/Tokyo:20260110T110000",
         ["2026-01-10T02:00"], ["2026-01-10T10:30", "2026-01-10T03:00"]),
        ("DTSTART;TZID=Asia/Tokyo:20260110T100000\nDTEND:20260110T020000Z", ["2026-01-10T02:59"], ["2026-01-10T03:00"]),
        ("DTSTART:20260110T100000\nDURATION:PT1H30M", ["2026-01-10T10:00", "2026-01-10T11:29"], ["2026-01-10T11:30"]),
        ("DTSTART:20260110T100000\nDURATION:P1W", ["2026-01-17T09:59"], ["2026-01-17T10:00"]),
        ("DTSTART:20260110T100000", [], ["2026-01-10T10:00"]),
        ("DTSTART;VALUE=DATE:20200501\nRRULE:FREQ=YEARLY", ["2026-05-01T10:00", "2077-05-01T10:00"],
         ["2019-05-01T10:00", "2026-05-02T10:00"]),
        ("DTSTART:20260105T220000\nDTEND:20260106T060000\nRRULE:FREQ=WEEKLY;BYDAY=MO,WE",
         ["2026-06-01T22:00", "2026-06-02T05:59", "2026-06-04T03:00"], ["2026-06-02T06:00", "2026-06-02T22:00"]),
        ("DTSTART:20260101T090000\nDTEND:20260101T100000\nRRULE:FREQ=MONTHLY;BYDAY=-1FR;UNTIL=20260630T080000Z",
         ["2026-01-30T09:30", "2026-05-29T09:30", "2026-06-26T09:30"], ["2026-01-23T09:30", "2026-07-31T09:30"]),
        ("DTSTART;VALUE=DATE:20260101\nRRULE:FREQ=DAILY;INTERVAL=2;COUNT=3",
         ["2026-01-01T01:00", "2026-01-03T01:00", "2026-01-05T01:00"], ["2026-01-02T01:00", "2026-01-07T01:00"]),
        ("DTSTART;VALUE=DATE:20260101\nRRULE:FREQ=DAILY;UNTIL=20260103", ["2026-01-03T23:00"], ["2026-01-04T00:00"]),
        ("DTSTART;VALUE=DATE:20260101\nRRULE:FREQ=DAILY\nEXDATE;VALUE=DATE:20260103,20260105\nEXDATE;VALUE=DATE:20260107",
         ["2026-01-04T12:00", "2026-01-06T12:00"], ["2026-01-03T12:00", "2026-01-05T12:00", "2026-01-07T12:00"]),
        ("DTSTART;TZID=Asia/Tokyo:20260101T080000\nDURATION:PT1H\nRRULE:FREQ=DAILY\nEXDATE:20260101T230000Z",
         ["2026-01-01T00:30", "2026-01-03T00:30"], ["2026-01-02T00:30"]),
        # over a change of the clocks the hours of the event are those of the wall clock
        ("DTSTART:20260101T013000\nDTEND:20260101T033000\nRRULE:FREQ=DAILY", ["2026-03-29T03:29", "2026-10-25T02:30"],
         ["2026-03-29T03:30", "2026-03-29T01:29", "2026-10-25T03:30"]),
        ("DTSTART;VALUE=DATE:20260101\nSTATUS:CANCELLED", [], ["2026-01-01T12:00"]),
    ],
)  # fmt: skip
def test_events(event: str, within: list[str], without: list[str]) -> None:
    """A moment is within from the start of an event to its end, exclusively; days are the schedule's."""
    text = ical(event)
    assert [moment for moment in within if allows(text, moment)] == []
    assert [moment for moment in without if not allows(text, moment)] == []


def test_an_occurrence_that_was_moved() -> None:
    """RECURRENCE-ID replaces one occurrence, or cancels it."""
    weekly = "DTSTART:20260105T100000\nDTEND:20260105T110000\nRRULE:FREQ=WEEKLY"
    moved = "RECURRENCE-ID:20260112T100000\nDTSTART:20260113T150000\nDTEND:20260113T160000"
    cancelled = (
        "RECURRENCE-ID:20260119T100000\nDTSTART:20260119T100000\nDTEND:20260119T110000\nSTATUS:CANCELLED"
    )
    text = ical(weekly, moved, cancelled)
    assert not allows(text, "2026-01-05T10:30")
    assert allows(text, "2026-01-12T10:30")
    assert not allows(text, "2026-01-13T15:30")
    assert allows(text, "2026-01-19T10:30")
    assert not allows(text, "2026-01-26T10:30")


def test_what_calendar_programs_write() -> None:
    """Folded lines, any line ends, other components and properties, nested alarms, quoted parameters."""
    text = (
        "BEGIN:VCALENDAR\nVERSION:2.0\nX-WR-CALNAME:Feiertage\nBEGIN:VTIMEZONE\nTZID:Europe/Berlin\n"
        "BEGIN:STANDARD\nDTSTART:19701025T030000\nRRULE:FREQ=YEARLY;BYMONTH=10;BYDAY=-1SU\nEND:STANDARD\n"
        'END:VTIMEZONE\nBEGIN:VEVENT\nUID:a\nSUMMARY;LANGUAGE="de:x;y":Neu\n jahr: und so\nDTSTART;VALUE=DA\n TE:2026\n 0101\n'
        "RRULE:FREQ=YEARLY\nBEGIN:VALARM\nTRIGGER:-PT1H\nDTSTART:20270601T000000\nEND:VALARM\n"
        "END:VEVENT\nBEGIN:VTODO\nDTSTART:20260202T000000\nEND:VTODO\nEND:VCALENDAR\n"
    )
    for newline in ("\n", "\r\n", "\r"):
        written = text.replace("\n", newline)
        assert not allows(written, "2027-01-01T10:00")
        assert allows(written, "2026-02-02T10:00")


def test_days_are_those_of_the_schedule() -> None:
    """The same day ends earlier in Tokyo."""
    text = ical("DTSTART;VALUE=DATE:20260101")
    assert not allows(text, "2026-01-01T23:30+01:00", BERLIN)
    assert allows(text, "2026-01-01T23:30+01:00", TOKYO)


def test_modes_and_dates() -> None:
    """EXCLUDE leaves them out, RESTRICT has nothing else."""
    moments = [int(datetime(2026, 1, day, 12, tzinfo=UTC).timestamp()) for day in (1, 2, 3)]
    text = ical("DTSTART;VALUE=DATE:20260102")
    exclude = read_calendar("EXCLUDE", ("2026-01-01",), text)
    restrict = read_calendar("RESTRICT", ("2026-01-01",), text)
    assert [exclude.allows(moment, UTC) for moment in moments] == [False, False, True]
    assert [restrict.allows(moment, UTC) for moment in moments] == [True, True, False]
    assert read_calendar("EXCLUDE").allows(moments[0], UTC)
    assert not read_calendar("RESTRICT").allows(moments[0], UTC)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hello", "line 1"),
        ("BEGIN:VEVENT\nEND:VEVENT", "BEGIN:VCALENDAR"),
        ("VERSION:2.0\nBEGIN:VCALENDAR\nEND:VCALENDAR", "BEGIN:VCALENDAR"),
        ("BEGIN:VCALENDAR\nBEGIN:VEVENT\nEND:VCALENDAR", "END:VCALENDAR ends nothing"),
        ("END:VCALENDAR", "BEGIN:VCALENDAR"),
        ("BEGIN:VCALENDAR\nBEGIN:VEVENT", "VEVENT is not ended"),
        ("BEGIN:VCALENDAR\n" + "BEGIN:X\n" * 9, "deeply"),
        (ical("SUMMARY:x"), "line 4: expected DTSTART once"),
        (ical("DTSTART:20260101\nDTSTART:20260102"), "found it 2 times"),
        (ical("DTSTART:20261301"), "20261301"),
        (ical("DTSTART:20260230"), "20260230"),
        (ical("DTSTART:20260101T250000"), "20260101T250000"),
        (ical("DTSTART:00010101"), "1900"),
        (ical("DTSTART:99991231"), "2999"),
        (ical("DTSTART;TZID=W. Europe Standard Time:20260101T000000"), "Europe Standard Time"),
        (ical("DTSTART:20260102\nDTEND:20260101"), "ends before"),
        (ical("DTSTART:20260102\nDTEND:20260103T000000"), "DTEND"),
        (ical("DTSTART:20260102\nDURATION:-P1D"), "DURATION"),
        (ical("DTSTART:20260102\nDURATION:P"), "DURATION"),
        (ical("DTSTART:20260102\nRRULE:FREQ=HOURLY"), "DAILY, WEEKLY, MONTHLY, YEARLY"),
        (ical("DTSTART:20260102\nRRULE:FREQ=MONTHLY;BYSETPOS=1;BYDAY=MO"), "BYSETPOS"),
        (ical("DTSTART:20260102\nRRULE:FREQ=DAILY;INTERVAL=0"), "INTERVAL"),
        (ical("DTSTART:20260102\nRRULE:FREQ=DAILY;COUNT=2;UNTIL=20270101"), "not both"),
        (ical("DTSTART:20260102\nRRULE:FREQ=DAILY;FREQ=DAILY"), "once each"),
        (ical("DTSTART:20260102\nRRULE:FREQ=DAILY;BYDAY=1MO"), "BYDAY"),
        (ical("DTSTART:20260102\nRRULE:FREQ=YEARLY;BYDAY=54MO"), "BYDAY"),
        (ical("DTSTART:20260102\nRRULE:FREQ=WEEKLY;BYMONTHDAY=1"), "BYMONTHDAY"),
        (ical("DTSTART:20260102\nRRULE:FREQ=WEEKLY;WKST=XX"), "WKST"),
        (ical("DTSTART:20260102\nRRULE:FREQ=DAILY;BYMONTH=13"), "BYMONTH"),
        (ical("DTSTART:20260102\nRRULE:FREQ=DAILY;UNTIL=soon"), "UNTIL"),
        (ical("DTSTART:20260102\nDTEND:20270102\nRRULE:FREQ=YEARLY"), "62 days"),
        (ical("DTSTART:20260102\nRDATE:20260103"), "RDATE"),
        (ical("DTSTART:20260102\nRECURRENCE-ID;RANGE=THISANDFUTURE:20260102"), "RANGE"),
        (ical(*["DTSTART:20260102"] * 1001), "1001 events"),
        ("x" * 300_000, "262144"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, says: str) -> None:
    """By name, with the line where there is one."""
    with pytest.raises(InvalidInputError) as caught:
        read_calendar("EXCLUDE", (), text)
    assert caught.value.field == "calendar.ical"
    assert says in str(caught.value)


@pytest.mark.parametrize("day", ["", "2026-1-1", "20260101", "2026-02-30", "tomorrow", "2026-W01-1"])
def test_dates_that_are_none(day: str) -> None:
    with pytest.raises(InvalidInputError, match="YYYY-MM-DD") as caught:
        read_calendar("EXCLUDE", ("2026-01-01", day))
    assert caught.value.field == "calendar.dates[1]"


def test_a_mode_that_is_none() -> None:
    with pytest.raises(InvalidInputError, match="RESTRICT"):
        read_calendar("SOMETIMES")


def test_hostile_rules_cost_little() -> None:
    """Rules that never come true, and a thousand of them that are counted."""
    never = "DTSTART;VALUE=DATE:20260101\nRRULE:FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30"
    assert allows(ical(*[never] * 1000), "2026-02-28T12:00")
    with pytest.raises(InvalidInputError, match="COUNT reaches too far"):
        read_calendar("EXCLUDE", (), ical(*[never + ";COUNT=2"] * 1000))
    folded = ical("SUMMARY:" + "\n x" * 80_000 + "\nDTSTART:20260101", newline="\n")
    assert not allows(folded, "2026-01-01T12:00")


@st.composite
def rules(draw: st.DrawFn) -> str:
    frequency = draw(st.sampled_from(["DAILY", "WEEKLY", "MONTHLY", "YEARLY"]))
    parts = [f"FREQ={frequency}"]
    if draw(st.booleans()):
        parts.append(f"INTERVAL={draw(st.integers(1, 5))}")
    months = draw(st.lists(st.integers(1, 12), max_size=3))
    if months:
        parts.append("BYMONTH=" + ",".join(map(str, months)))
    days = draw(st.lists(st.sampled_from(["MO", "TU", "WE", "TH", "FR", "SA", "SU"]), max_size=3))
    if days and frequency in ("MONTHLY", "YEARLY") and draw(st.booleans()):
        days = [
            f"{draw(st.sampled_from([1, 2, 4, 5, -1, -2, 20, -30] if frequency == 'YEARLY' and not months else [1, 2, 4, 5, -1, -2]))}{day}"
            for day in days
        ]
    if days:
        parts.append("BYDAY=" + ",".join(days))
    if frequency != "WEEKLY" and not any(day[0] in "-123456789" for day in days) and draw(st.booleans()):
        most = 28 if months else 31  # dateutil looks for 30 February until the year 9999
        month_days = draw(st.lists(st.integers(-most, most).filter(bool), min_size=1, max_size=3))
        parts.append("BYMONTHDAY=" + ",".join(map(str, month_days)))
    if frequency == "WEEKLY" and draw(st.booleans()):
        parts.append(f"WKST={draw(st.sampled_from(['MO', 'SU', 'TH']))}")
    return ";".join(parts)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rules(), st.dates(date(2019, 1, 1), date(2029, 1, 1)))
def test_recurrence_against_dateutil(text: str, first: date) -> None:
    """The same days as dateutil unrolls, over three years."""
    rule, _, _ = read_rule(text)
    end = first + timedelta(days=1100)
    start = datetime(first.year, first.month, first.day)
    unrolled = rrulestr(f"{text};UNTIL={end:%Y%m%d}", dtstart=start)
    theirs = [each.date() for each in unrolled]
    days = (first + timedelta(days=ahead) for ahead in range(1101))
    assert [day for day in days if rule.begins_on(day, first)] == theirs
