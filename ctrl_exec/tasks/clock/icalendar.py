"""iCalendar: the events of a text, as calendar programs export them.

Owns the syntax: VEVENT with DTSTART, DTEND or DURATION, RRULE, EXDATE, RECURRENCE-ID and STATUS; other
properties and components are passed over. Must not know what the events are for. Everything is bounded:
the text, the events, what an event that recurs may cost.

Source: RFC 5545: folding §3.1, DURATION §3.3.6, VEVENT §3.6.1, RECURRENCE-ID §3.8.4.4.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.value import replace, value
from ctrl_exec.tasks.clock.events import Event, When
from ctrl_exec.tasks.clock.recurrence import Rule, read_rule
from ctrl_exec.tasks.clock.wall_clock import moment_of
from ctrl_exec.tasks.clock.zones import zone_named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LIMIT_CHARACTERS = 256 << 10
LIMIT_EVENTS = 1000
_EVENT = ("VCALENDAR", "VEVENT")
_DEEPEST = 8
# an event that recurs is looked for on each day on which it can have begun
_LONGEST_RECURRING = timedelta(days=62)
# days looked at to find out where COUNT ends, over all events of a calendar: a third of a second
_COUNTING_BUDGET = 200_000
_WHEN = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(\d\d)(Z)?)?", re.ASCII)
_DURATION = re.compile(
    r"\+?P(?:(\d{1,4})W|(?:(\d{1,5})D)?(?:T(?:(\d{1,5})H)?(?:(\d{1,6})M)?(?:(\d{1,7})S)?)?)", re.ASCII
)
_PARAMETER = r';[A-Za-z0-9-]+=(?:"[^"]*"|[^";:,]*)(?:,(?:"[^"]*"|[^";:,]*))*'
_HEAD = re.compile(rf"([A-Za-z0-9-]+)((?:{_PARAMETER})*):")


@value
class _Line:
    number: int
    name: str
    parameters: dict[str, str]
    content: str


def read_events(text: str) -> tuple[Event, ...]:
    """The events of an iCalendar text. Raises: InvalidInputError."""
    if len(text) > LIMIT_CHARACTERS:
        raise InvalidInputError(f"expected at most {LIMIT_CHARACTERS} characters")
    parts = list(_components(_lines(text)))
    if len(parts) > LIMIT_EVENTS:
        raise InvalidInputError(f"{len(parts)} events, expected at most {LIMIT_EVENTS}")
    budget = [_COUNTING_BUDGET]
    found: list[tuple[str, date | None, bool, Event]] = []
    for lines in parts:
        try:
            found.append(_read_event(lines, budget))
        except (InvalidInputError, OverflowError) as error:
            raise InvalidInputError(f"event at line {lines['BEGIN'][0].number}: {error}") from error
    replaced: dict[str, set[date]] = {}
    for uid, instead_of, _, _ in found:
        if instead_of is not None:
            replaced.setdefault(uid, set()).add(instead_of)
    return tuple(
        event
        if instead_of is not None or uid not in replaced
        else replace(event, without=event.without | replaced[uid])
        for uid, instead_of, is_cancelled, event in found
        if not is_cancelled
    )


def _lines(text: str) -> Iterator[_Line]:
    """The content lines, unfolded, with the number of the physical line each begins at."""
    gathered: list[tuple[int, list[str]]] = []
    for number, physical in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if physical[:1] in (" ", "\t") and gathered:
            gathered[-1][1].append(physical[1:])
        elif physical:
            gathered.append((number, [physical]))
    for number, pieces in gathered:
        line = "".join(pieces)
        head = _HEAD.match(line)
        if head is None:
            raise InvalidInputError(f"line {number}: expected NAME:value, got {line[:40]!r}")
        pairs = re.findall(r';([A-Za-z0-9-]+)=("[^"]*"|[^";:]*)', head[2])
        parameters = {name.upper(): content.strip('"') for name, content in pairs}
        yield _Line(number, head[1].upper(), parameters, line[head.end() :])


def _components(lines: Iterable[_Line]) -> Iterator[dict[str, list[_Line]]]:
    """The lines of each VEVENT by name, without those of what is nested in it."""
    inside: list[str] = []
    event: dict[str, list[_Line]] = {}
    for line in lines:
        was_inside = tuple(inside)
        _nest(inside, line)
        if was_inside == _EVENT and line.name == "END":
            yield event
        elif was_inside == _EVENT and line.name != "BEGIN":
            event.setdefault(line.name, []).append(line)
        elif was_inside == _EVENT[:1] and tuple(inside) == _EVENT:
            event = {"BEGIN": [line]}
    if inside:
        raise InvalidInputError(f"{inside[-1][:40]} is not ended")


def _nest(inside: list[str], line: _Line) -> None:
    """Open and close components; `inside` names those that are open."""
    word = line.content.strip().upper()
    if line.name == "BEGIN":
        inside.append(word)
        if len(inside) > _DEEPEST:
            raise InvalidInputError(f"line {line.number}: components nest too deeply")
    if inside[:1] != ["VCALENDAR"]:
        raise InvalidInputError(f"line {line.number}: expected BEGIN:VCALENDAR")
    if line.name == "END" and inside.pop() != word:
        raise InvalidInputError(f"line {line.number}: END:{word[:40]} ends nothing that is open")


def _read_event(lines: dict[str, list[_Line]], budget: list[int]) -> tuple[str, date | None, bool, Event]:
    """Its UID, the day whose occurrence it replaces (None for none), whether it is cancelled, itself."""
    for name in ("RDATE", "EXRULE"):
        if name in lines:
            raise InvalidInputError(f"{name} is not supported, expected RRULE and EXDATE")
    start = _when(_only(lines, "DTSTART"))
    length = _length(lines, start)
    event = Event(start, length, without=frozenset(_days_left_out(lines, start)))
    if "RRULE" in lines:
        event = _recurring(event, _only(lines, "RRULE").content, budget)
    uid = lines["UID"][0].content if "UID" in lines else ""
    is_cancelled = any(line.content.strip().upper() == "CANCELLED" for line in lines.get("STATUS", ()))
    instead_of = None
    if "RECURRENCE-ID" in lines:
        line = _only(lines, "RECURRENCE-ID")
        if "RANGE" in line.parameters:
            raise InvalidInputError("RECURRENCE-ID with RANGE is not supported, expected a single occurrence")
        instead_of = _day_of(_when(line), start)
    return uid, instead_of, is_cancelled, event


def _only(lines: dict[str, list[_Line]], name: str) -> _Line:
    found = lines.get(name, [])
    if len(found) != 1:
        raise InvalidInputError(f"expected {name} once, found it {len(found)} times")
    return found[0]


def _when(line: _Line, text: str | None = None) -> When:
    content = line.content.strip() if text is None else text.strip()
    found = _WHEN.fullmatch(content)
    try:
        if found is None:
            raise ValueError(content)
        year, month, day = (int(each) for each in found.groups()[:3])
        clock = [int(each) for each in found.groups()[3:6] if each is not None]
        hour, minute, second = clock or (0, 0, 0)
        wall = datetime(year, month, day, hour, minute, second)  # noqa: DTZ001 - the zone is kept beside it
    except ValueError as error:
        raise InvalidInputError(
            f"{line.name} {content[:40]!r}: expected 20260131 or 20260131T093000, perhaps with Z"
        ) from error
    if not 1900 <= year <= 2999:
        raise InvalidInputError(f"{line.name} {content[:40]!r}: expected a year from 1900 to 2999")
    if not clock:
        return When(wall, is_day=True)
    named = line.parameters.get("TZID")
    return When(wall, zone=UTC if found[7] else zone_named(named) if named else None)


def _length(lines: dict[str, list[_Line]], start: When) -> timedelta:
    if "DTEND" in lines:
        end = _when(_only(lines, "DTEND"))
        if end.is_day != start.is_day or (end.zone is None) != (start.zone is None):
            raise InvalidInputError("DTEND: expected a date or time of the kind that DTSTART is")
        length = end.wall - start.wall
        if start.zone is not None and end.zone is not None and str(start.zone) != str(end.zone):
            length = timedelta(seconds=moment_of(end.wall, end.zone) - moment_of(start.wall, start.zone))
    elif "DURATION" in lines:
        length = _duration(_only(lines, "DURATION").content.strip())
    else:
        length = timedelta(days=1) if start.is_day else timedelta()
    if length < timedelta():
        raise InvalidInputError("it ends before it begins")
    return length


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        raise InvalidInputError(f"DURATION {text[:40]!r}: expected P1D, PT2H30M or P2W")
    weeks, days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)


def _days_left_out(lines: dict[str, list[_Line]], start: When) -> Iterator[date]:
    for line in lines.get("EXDATE", ()):
        for text in line.content.split(","):
            yield _day_of(_when(line, text), start)


def _day_of(when: When, start: When) -> date:
    """The day, in the zone of the event's start, on which the occurrence begins that is meant."""
    if when.is_day or when.zone is None or start.zone is None:
        return when.wall.date()
    return datetime.fromtimestamp(moment_of(when.wall, when.zone), start.zone).date()


def _recurring(event: Event, text: str, budget: list[int]) -> Event:
    rule, count, until = read_rule(text)
    if event.length > _LONGEST_RECURRING:
        raise InvalidInputError(f"an event that recurs may last {_LONGEST_RECURRING.days} days at most")
    if count is not None and until:
        raise InvalidInputError("RRULE: expected COUNT or UNTIL, not both")
    last_day = date.max
    if count is not None:
        last_day = _last_of(rule, event.start.wall.date(), count, budget)
    ends = _when(_Line(0, "RRULE UNTIL", {}, until)) if until else None
    return replace(event, rule=rule, until=ends, last_day=last_day)


def _last_of(rule: Rule, first: date, count: int, budget: list[int]) -> date:
    """The day of the occurrence that is number `count`."""
    day = first
    while True:
        budget[0] -= 1
        if budget[0] < 0:
            raise InvalidInputError("RRULE: COUNT reaches too far, expected UNTIL")
        if rule.begins_on(day, first):
            count -= 1
            if not count:
                return day
        day += timedelta(days=1)
