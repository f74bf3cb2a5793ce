"""Following a run over breaks: the daemon that is restarted, the connection that is cut.

Owns where it stands in the run's events, so that none is lost or comes twice, and how long a daemon that
broke off is waited for before this process takes over, where it may. Must not know what an event says.
"""

from __future__ import annotations

import time

from ctrl_exec.cli.daemon import BrokenError, UnsentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ctrl_exec.cli.progress import Release

    Event = dict[str, Any]

# as operations.follow has it: a run's events from the first
BEGINNING = -1
# beyond the last: only how it ends
ONLY_THE_END = 10**15 - 1
# how long a daemon that broke off may take to come back, as after a restart
COME_BACK_S = 30.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class Following:
    """The events of one run. `over` and `here` give those after a place, over the daemon and in this process.

    `leave` gives the daemon up for this process, or raises where that may not do it.
    """

    def __init__(
        self,
        release: Release,
        over: Callable[[int], Iterator[Event]] | None,
        here: Callable[[int], Iterator[Event]],
        leave: Callable[[str], None],
    ) -> None:
        self._release = release
        self._over = over
        self._here = here
        self._leave = leave
        self._place = BEGINNING
        self._has_heard = False
        self._deadline = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def events(self, after: int = BEGINNING) -> Iterator[Event]:
        """Give the events after one of them, to the run's end or the release.

        Raises: what the first attempt raises; what `leave` raises when the daemon does not come back.
        """
        self._place = after
        while self._over is not None and not self._release.is_pressed:
            try:
                for event in self._over(self._place):
                    yield from self._noted(event)
                    if event.get("event") == "end":
                        return
                why = "the daemon ended the stream before the run"
            except (UnsentError, BrokenError) as error:
                why = str(error)
            except KeyboardInterrupt:
                return
            self._bear(why)
        if not self._release.is_pressed:
            for event in self._here(self._place):
                yield from self._noted(event)

    def _noted(self, event: Event) -> Iterator[Event]:
        self._has_heard, self._deadline, self._pause_s = True, 0.0, _FIRST_PAUSE_S
        if event.get("event") != "idle":
            self._place = max(self._place, int(event.get("id", 0)))
            yield event

    def _bear(self, why: str) -> None:
        """Wait a little for a daemon that had answered; turn to this process for one that does not."""
        self._deadline = self._deadline or time.monotonic() + COME_BACK_S
        if self._has_heard and time.monotonic() < self._deadline:
            self._release.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            return
        self._leave(why)
        self._over = None
