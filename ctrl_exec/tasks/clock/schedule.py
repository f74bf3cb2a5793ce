"""What is due at a moment: a pure module, in which time is an argument.

Owns the order of what comes next, and the judgement on each due time: a start, or a start that is not
made and why. Each due time is judged once, in order, and a due time that was seen is never due again,
whatever the clock of the machine does. Knows no database and no process.

The rule for late starts: of several due times that have passed only the latest is a start, so that
nothing starts in bursts, and only while it is no later than `start_deadline_s`; without one that is
GRACE_S with the policy SKIP, and for ever with RUN_ONCE. All others are MISSED.
"""

from __future__ import annotations

import heapq
import math

from ctrl_exec.common.value import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

    from ctrl_exec.tasks.clock.calendar import Calendar
    from ctrl_exec.tasks.clock.cron import Cron

SKIP, RUN_ONCE = "SKIP", "RUN_ONCE"
START = ""
MISSED, CALENDAR, DISABLED = "MISSED", "CALENDAR", "DISABLED"
# a restart of the scheduler or of the machine's clock service must not cost a start
GRACE_S = 60
# cron(8): a clock that is set back by more was wrong; what is to come counts from the right time then
LARGEST_STEP_BACK_S = 3 * 3600
# due times that are recorded one by one after a time without a scheduler; of more the first ones are
LIMIT_MISSED = 1000


@value
class Terms:
    """What a task says of its starts by the clock."""

    is_enabled: bool = True
    missed_policy: str = SKIP
    start_deadline_s: int | None = None
    calendar: Calendar | None = None


@value
class Entry:
    """A schedule of a task: judged are the due times after `seen_s`."""

    key: str
    cron: Cron
    zone: tzinfo
    seen_s: int
    terms: Terms = Terms()

    def next_due(self) -> int | None:
        """The first due time that was not judged yet."""
        return self.cron.next_after(self.seen_s, self.zone)


@value
class Due:
    """A judged due time: a START, or the reason why none is made.

    `passed_over_s`: due times between it and the one before it were too many to be judged one by one.
    """

    key: str
    due_s: int
    reason: str = START
    passed_over_s: int = 0


def judge(entry: Entry, now_s: float) -> tuple[Due, ...]:
    """Every due time of the entry up to now, in order, each with its judgement."""
    moments, resumed = _passed(entry, now_s)
    if not moments:
        return ()
    chosen = _latest_allowed(entry, moments)
    judged = []
    for moment in moments:
        over = moment - moments[-2] if resumed and moment == moments[-1] else 0
        judged.append(Due(entry.key, moment, _reason(entry, moment, chosen, now_s), over))
    return tuple(judged)


def _passed(entry: Entry, now_s: float) -> tuple[list[int], bool]:
    """The due times up to now; of too many the first ones and the last, which is said."""
    moments: list[int] = []
    for moment in entry.cron.moments(entry.seen_s, now_s, entry.zone):
        moments.append(moment)
        if len(moments) == LIMIT_MISSED:
            break
    else:
        return moments, False
    last = _last_before(entry, moments[-1], now_s)
    return (moments, False) if last == moments[-1] else ([*moments, last], True)


def _last_before(entry: Entry, known: int, now_s: float) -> int:
    """The last due time up to now, by some dozens of looks; `known` is one of them."""
    last, empty_after = known, math.floor(now_s)
    while last < empty_after:
        middle = (last + empty_after) // 2
        found = entry.cron.next_after(middle, entry.zone)
        if found is not None and found <= now_s:
            last = found
        else:
            empty_after = middle
    return last


def _latest_allowed(entry: Entry, moments: list[int]) -> int | None:
    for moment in reversed(moments):
        if _allows(entry, moment):
            return moment
    return None


def _allows(entry: Entry, moment_s: float) -> bool:
    calendar = entry.terms.calendar
    return calendar is None or calendar.allows(int(moment_s), entry.zone)


def _reason(entry: Entry, moment: int, chosen: int | None, now_s: float) -> str:
    if not entry.terms.is_enabled:
        return DISABLED
    if moment != chosen:
        return MISSED if _allows(entry, moment) else CALENDAR
    # the second in which it is due is not late, however short the deadline
    late_s = math.floor(now_s) - moment
    if late_s > max(1.0, _longest_delay_s(entry.terms)):
        return MISSED
    # what is made up for belongs neither into times that the calendar leaves out
    return START if late_s <= GRACE_S or _allows(entry, now_s) else CALENDAR


def _longest_delay_s(terms: Terms) -> float:
    if terms.start_deadline_s is not None:
        return terms.start_deadline_s
    return math.inf if terms.missed_policy == RUN_ONCE else GRACE_S


def is_of_another_time(seen_s: float, now_s: float) -> bool:
    """Whether what was seen is so far ahead of now that the clock must have been wrong then."""
    return seen_s - now_s > LARGEST_STEP_BACK_S


class Agenda:
    """Entries by their next due time. Only those that change are computed anew."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Entry, int, int | None]] = {}
        self._heap: list[tuple[int, str, int]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return (entry for entry, _, _ in self._entries.values())

    def put(self, entry: Entry) -> None:
        """Add an entry, or put it in place of that with its key."""
        self._serial += 1
        due = entry.next_due()
        self._entries[entry.key] = (entry, self._serial, due)
        if due is not None:
            heapq.heappush(self._heap, (due, entry.key, self._serial))
        self._drop_stale()

    def due_of(self, key: str) -> int | None:
        """The next due time of an entry that is there; None if it is never due."""
        return self._entries[key][2]

    def remove(self, key: str) -> None:
        """Forget an entry, if there is one."""
        self._entries.pop(key, None)
        self._drop_stale()

    def _drop_stale(self) -> None:
        """Forget places of entries that were replaced or removed before they are due."""
        if len(self._heap) > 2 * len(self._entries) + 100:
            self._heap = [each for each in self._heap if self._is_current(each)]
            heapq.heapify(self._heap)

    def _is_current(self, place: tuple[int, str, int]) -> bool:
        _, key, serial = place
        return key in self._entries and self._entries[key][1] == serial

    def next_due(self) -> int | None:
        """The next due time of any entry; None if nothing is ever due."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now_s: float, most: int) -> tuple[Due, ...]:
        """What has become due, judged, the earliest first; about `most` at once: ask until there is none."""
        found: list[Due] = []
        while len(found) < most and (due := self.next_due()) is not None and due <= now_s:
            entry = self._entries[self._heap[0][1]][0]
            judged = judge(entry, now_s)
            found.extend(judged)
            heapq.heappop(self._heap)
            self.put(replace(entry, seen_s=judged[-1].due_s))
        return tuple(found)
