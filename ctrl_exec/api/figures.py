"""The counters behind `/metrics`: where each has its place in the server's shared block.

Owns the layout and the counting. All children count in the same place.
"""

from __future__ import annotations

from _bisect import bisect_left

from ctrl_exec.common.messages import STATES
from ctrl_exec.services.records import MODES
from ctrl_exec.services.records import STATES as RUN_STATES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.common.hook import HookVerdict
    from ctrl_exec.common.http import Child
    from ctrl_exec.operations.report import RunReport

HTTP_STATUSES = (
    200, 201, 202, 204, 400, 401, 403, 404, 405, 408, 409, 412, 413, 414, 415, 416, 417, 429, 431,
    500, 501, 503, 505, 0,
)  # fmt: skip
"""The statuses counted apart; 0 stands for all others."""

BUCKETS_MS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
HOOK_OUTCOMES = ("allowed", "denied", "bad credentials", "insufficient privilege", "timeout")
RUN_KINDS = tuple((mode, state) for mode in MODES for state in RUN_STATES)
"""Mode and state of a run, as it was answered for."""


_STATUS_PLACES = {status: place for place, status in enumerate(HTTP_STATUSES)}
_OTHER_STATUS = _STATUS_PLACES[0]


class Layout:
    """Which counter is where; `routes` are the names of the route table, and one for no route."""

    def __init__(self, routes: tuple[str, ...]) -> None:
        self.routes = (*routes, "none")
        self._width = len(HTTP_STATUSES)
        self.durations = len(self.routes) * self._width
        self.buckets = self.durations + len(self.routes)
        self.hooks = self.buckets + len(BUCKETS_MS) + 1
        self.hook_us = self.hooks + len(HOOK_OUTCOMES)
        self.runs = self.hook_us + 1
        self.hosts = self.runs + len(RUN_KINDS)
        self.lock_conflicts = self.hosts + len(STATES)
        self.count = self.lock_conflicts + 1

    def request(self, route: int, status: int) -> int:
        """Where requests of that route (by its place) with that status are counted."""
        return route * self._width + _STATUS_PLACES.get(status, _OTHER_STATUS)


class Figures:
    """Counts what a child does; made for the children before there is one, and told which."""

    child: Child

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def note_request(self, route: int, status: int, duration_s: float) -> None:
        """One answered request; the duration to its answer."""
        layout = self.layout
        counted = (
            (layout.request(route, status), 1),
            (layout.durations + route, round(duration_s * 1e6)),
            (layout.buckets + bisect_left(BUCKETS_MS, duration_s * 1000), 1),
        )
        self.child.note_answer(route, status, counted)

    def note_hook(self, verdict: HookVerdict) -> None:
        """One question to the auth hook."""
        layout, child = self.layout, self.child
        child.count(
            layout.hooks + (HOOK_OUTCOMES.index("timeout") if verdict.has_timed_out else verdict.code)
        )
        child.count(layout.hook_us, round(verdict.elapsed_s * 1e6))

    def note_run(self, report: RunReport) -> None:
        """One run answered for, with the states it and its hosts were in then."""
        layout, child = self.layout, self.child
        child.count(layout.runs + RUN_KINDS.index((report.mode, report.state)))
        for state, count in report.counts.items():
            child.count(layout.hosts + STATES.index(state), count)

    def note_lock_conflict(self) -> None:
        """One run refused because of a lock."""
        self.child.count(self.layout.lock_conflicts)
