"""Time as text and back; every datetime of ours is aware and in UTC."""

from __future__ import annotations

import time

from ctrl_exec.common.errors import MessageError
from ctrl_exec.common.second import MONTHS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import UTC, datetime
else:
    from _datetime import UTC, datetime  # `datetime` runs the same in Python first, 1 ms of a command's start


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
    return f"{MONTHS[at.month - 1]} {at.day:2d} {at:%H:%M:%S} {at.year:04d} GMT"


def parse_openssl_time(text: str) -> datetime:
    """The moment of `Jan 15 12:00:00 2026 GMT`.

    Raises: MessageError.
    """
    try:
        month, day, hms, year, zone = text.split()
        hour, minute, second = (int(part) for part in hms.split(":"))
        if zone != "GMT":
            raise ValueError(zone)
        return datetime(int(year), MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=UTC)
    except (ValueError, AttributeError) as error:
        raise MessageError(f"{text!r} is not a time like Jan 15 12:00:00 2026 GMT") from error
