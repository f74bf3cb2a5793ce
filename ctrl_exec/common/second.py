"""The second it is, as answers and logs write it; without `datetime`, and made once for all who ask."""

from __future__ import annotations

import time

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class Second:
    """One second as text: `http` as in `Date` (RFC 9110 §5.6.7), `iso` as in `iso_z`."""

    __slots__ = ("epoch_s", "http", "iso")

    def __init__(self, epoch_s: int) -> None:
        year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(epoch_s)
        at = f"{hour:02d}:{minute:02d}:{second:02d}"
        self.epoch_s = epoch_s
        self.http = f"{_DAYS[weekday]}, {day:02d} {MONTHS[month - 1]} {year:04d} {at} GMT"
        self.iso = f"{year:04d}-{month:02d}-{day:02d}T{at}Z"


_latest = Second(0)


def this_second() -> Second:
    """The second it is, made once; a server that looks before it forks has made it for its child."""
    global _latest  # noqa: PLW0603 - a cache of what is the same for all
    epoch_s = int(time.time())
    if _latest.epoch_s != epoch_s:
        _latest = Second(epoch_s)
    return _latest
