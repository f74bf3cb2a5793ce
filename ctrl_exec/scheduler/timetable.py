"""What is due at a moment: a pure module, in which time is an argument.

Owns the rule for missed moments of the scheduler's own duties: what was due several times while nobody
looked is due once. Tasks have rules of their own (`ctrl_exec.tasks.clock.schedule`).
"""

from __future__ import annotations

from ctrl_exec.common.errors import ConfigError, InvalidInputError
from ctrl_exec.common.value import value
from ctrl_exec.tasks.clock.cron import parse_cron

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import tzinfo

# a clock that was set back further than this would leave us waiting for moments long computed
_SET_BACK_S = 90.0


@value
class Duty:
    """Something to be done again and again; `next_after` gives its next moment (epoch), None for never."""

    name: str
    next_after: Callable[[float], float | None]
    work: Callable[[], None]


def cron(expression: str, zone: tzinfo) -> Callable[[float], float | None]:
    """The moments of a cron expression, each after the one given; never with an empty one.

    Raises: ConfigError if it is no cron expression.
    """
    if not expression:
        return lambda _: None
    try:
        read = parse_cron(expression)
    except InvalidInputError as error:
        raise ConfigError(f"{expression!r}: {error}") from error
    return lambda moment: read.next_after(moment, zone)


def every(seconds: float) -> Callable[[float], float | None]:
    """The moments that are multiples of a period of the epoch."""
    return lambda moment: (moment // seconds + 1) * seconds


class Timetable:
    """The next moment of each duty."""

    def __init__(self, duties: Iterable[Duty], now: float, *, at_once: Iterable[str] = ()) -> None:
        self._duties = {duty.name: duty for duty in duties}
        self._looked_at = now
        self._due = {name: duty.next_after(now) for name, duty in self._duties.items()}
        self._due |= dict.fromkeys(at_once, now)

    def take_due(self, now: float) -> tuple[tuple[Duty, float], ...]:
        """The duties due by now with their lateness in seconds; each is then due after now again."""
        if now < self._looked_at - _SET_BACK_S:
            self._due = {name: duty.next_after(now) for name, duty in self._duties.items()}
        self._looked_at = now
        found = []
        for name, duty in self._duties.items():
            due = self._due[name]
            if due is not None and due <= now:
                found.append((duty, now - due))
                self._due[name] = duty.next_after(now)
        return tuple(found)

    def next_due(self) -> float | None:
        """The next moment at which something is due, None if nothing ever is."""
        return min((due for due in self._due.values() if due is not None), default=None)
