"""Time as text and back; every datetime of ours is aware and in UTC."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from ctrl_exec.common.errors import MessageError

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def utc_now() -> datetime:
    """This moment, aware, in UTC."""
    return datetime.now(UTC)


def epoch_now() -> int:
    """This moment in whole seconds since the epoch."""
    return int(time.time())


def monotonic() -> float:
    """Seconds on a clock that nobody sets; for deadlines and durations."""
    return time.monotonic()


def iso_z(moment: datetime) -> str:
    """`2026-01-15T12:00:00Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_iso_z(text: str) -> datetime:
    """The moment of `2026-01-15T12:00:00Z`.

    Raises: MessageError.
    """
    try:
        # strptime would do; importing its module costs 3 ms, and this is read at every ping
        if len(text) != 20 or text[4] + text[7] + text[10] + text[13] + text[16] + text[19] != "--T::Z":
            raise ValueError(text)
        return datetime.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise MessageError(f"{text!r} is not a time like 2026-01-15T12:00:00Z") from error


def openssl_time(moment: datetime) -> str:
    """`Jan 15 12:00:00 2026 GMT`, as openssl prints it: the day padded with a space, never localised."""
    at = moment.astimezone(UTC)
    return f"{_MONTHS[at.month - 1]} {at.day:2d} {at:%H:%M:%S} {at.year:04d} GMT"


def parse_openssl_time(text: str) -> datetime:
    """The moment of `Jan 15 12:00:00 2026 GMT`.

    Raises: MessageError.
    """
    try:
        month, day, hms, year, zone = text.split()
        hour, minute, second = (int(part) for part in hms.split(":"))
        if zone != "GMT":
            raise ValueError(zone)
        return datetime(int(year), _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC)
    except (ValueError, AttributeError) as error:
        raise MessageError(f"{text!r} is not a time like Jan 15 12:00:00 2026 GMT") from error


def http_date(epoch_s: float) -> str:
    """`Thu, 15 Jan 2026 12:00:00 GMT`. Source: RFC 9110 §5.6.7."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(epoch_s)
    date = f"{_DAYS[weekday]}, {day:02d} {_MONTHS[month - 1]} {year:04d}"
    return f"{date} {hour:02d}:{minute:02d}:{second:02d} GMT"
