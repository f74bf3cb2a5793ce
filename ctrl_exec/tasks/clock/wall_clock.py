"""Wall-clock times in a zone whose clocks are changed: what is left out, what comes twice, and when.

Owns the way between a moment (seconds since the epoch) and a wall-clock time (a datetime without a zone).
Must not know what happens at either.

Source: PEP 495.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from ctrl_exec.common.value import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import tzinfo

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - wall-clock times have no zone
SECOND = timedelta(seconds=1)


@value
class Place:
    """A moment in its zone; where its wall-clock time comes twice, with the turn back of the clocks.

    `turn` is the moment the clocks are set back by `shift` seconds, from `over` to `again`.
    """

    wall: datetime
    is_second: bool = False
    turn: int | None = None
    shift: int = 0
    again: datetime = EPOCH
    over: datetime = EPOCH

    @classmethod
    def of(cls, moment_s: int, zone: tzinfo) -> Place:
        """Where the moment is."""
        local = datetime.fromtimestamp(moment_s, zone)
        wall = local.replace(tzinfo=None, fold=0)
        early, late = offsets_at(wall, zone)
        if early <= late:
            return cls(wall)
        base = seconds_of(wall)
        turn = turn_between(zone, base - early, base - late)
        again, over = (wall_of(turn + offset) for offset in (late, early))
        return cls(wall, bool(local.fold), turn, early - late, again, over)


def offsets_at(wall: datetime, zone: tzinfo) -> tuple[int, int]:
    """The zone's offsets in seconds at a wall-clock time: equal, or before and after a change of the clocks.

    The first is the smaller one where the time is left out, the greater one where it comes twice.
    """
    early = wall.replace(tzinfo=zone, fold=0).utcoffset() or timedelta()
    late = wall.replace(tzinfo=zone, fold=1).utcoffset() or timedelta()
    return early // SECOND, late // SECOND


def turn_between(zone: tzinfo, before: int, after: int) -> int:
    """The moment at which the offset of `before` ends; at `after` it has."""
    old = datetime.fromtimestamp(before, zone).utcoffset()
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == old:
            before = middle
        else:
            after = middle
    return after


def seconds_of(wall: datetime) -> int:
    """The wall-clock time as seconds, as if it were UTC."""
    return (wall - EPOCH) // SECOND


def wall_of(seconds: int) -> datetime:
    """The wall-clock time that `seconds_of` gives those seconds for."""
    return EPOCH + timedelta(seconds=seconds)


def moment_of(wall: datetime, zone: tzinfo) -> int:
    """The moment of a wall-clock time: the first of two; for one that is left out, when the clocks change."""
    early, late = offsets_at(wall, zone)
    base = seconds_of(wall)
    return turn_between(zone, base - late, base - early) if early < late else base - early
